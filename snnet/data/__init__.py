"""Images: found, ordered, decoded, augmented and batched."""
