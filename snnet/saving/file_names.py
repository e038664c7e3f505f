"""Names of the files in the folder of a saved net."""

CONFIG = 'config.json'
"""How to build the net, and what is known of its stitches."""
WEIGHTS = 'model.safetensors'
STATISTICS = 'statistics.safetensors'
"""BatchNorm statistics of the stitches, where they were recalibrated."""
OWN = 'own_parameters.safetensors'
"""Parameters that belong to single stitches, where they were adapted."""
PROFILES = 'profiles'
"""Folder of the latency tables that were measured with the weights."""
CARD, PICTURE = 'README.md', 'frontier.png'
FILES = (CONFIG, WEIGHTS, STATISTICS, OWN, CARD, PICTURE, f'{PROFILES}/*.json')
"""What is fetched from the Hub and uploaded to it, and nothing else."""
