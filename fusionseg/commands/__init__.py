"""The commands of `fusionseg`. Each imports its work when it runs, so that help is quick."""
