"""What config.json of a saved net calls reassembled networks."""

REASSEMBLED = 'reassembled'
"""Stands where timm's name of a network would."""
