"""One list of transforms, applied to samples and inverted for predicted actions."""
