"""LeRobot data sets on disk, versions 2.0, 2.1 and 3.0: where the numbers and pixels of a frame are."""
