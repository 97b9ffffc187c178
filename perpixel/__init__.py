"""perpixel: tell a segmentation network, pixel by pixel, which evidence its labels rest on, and train it with that."""
