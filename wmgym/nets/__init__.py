"""Networks, recurrent cells and distributions that worlds and agents are made of."""
