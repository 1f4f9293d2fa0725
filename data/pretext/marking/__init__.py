"""How replies to pretext tasks are read and paid, official scorers included."""
