"""The nine stages, the frame that runs them (`runtime`) and the hand-written model (`whitebox`)."""
