"""Inputs of a prediction: an image, a folder of images, a folder for each case, or the cases that a data set lists."""
