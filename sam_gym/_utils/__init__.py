"""What all rooms need and none is about: boxes, devices, names in messages, progress bars, downloads."""
