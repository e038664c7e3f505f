"""Deep model reassembly (DeRy): a new network from the blocks of a zoo, under a budget."""
