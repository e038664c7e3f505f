"""The accuracy of every stitch, measured in one pass over the images."""
