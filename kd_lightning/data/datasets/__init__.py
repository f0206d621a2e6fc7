"""Sets of images with a fixed training, validation and test part: one ``load`` function per file."""
