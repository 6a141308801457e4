"""Speed and memory against peers, against sizes, and on a device. Not a part of the package."""
