"""The end of a training: its reasons, the signals that ask for it, and what is written then."""
