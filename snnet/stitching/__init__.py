"""What joins two anchors, and which stitches there are."""
