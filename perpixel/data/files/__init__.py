"""Data sets on files: folders of images and masks, and published ones through torchvision's readers."""
