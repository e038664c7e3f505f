"""One adapter per family: its layout, stem, stages and head."""
