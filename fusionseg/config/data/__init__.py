"""Sections that concern the data: the data set, its preparation, augmentation and memory."""
