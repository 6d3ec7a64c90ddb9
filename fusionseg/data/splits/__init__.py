"""The split of a data set into training and validation cases: folds that are stated, drawn, grouped or stratified."""
