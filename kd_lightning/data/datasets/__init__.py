"""Image data sets with fixed training, validation and test parts: one ``load`` function per file."""
