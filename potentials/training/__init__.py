"""Training of potentials: labelled structures, loss, and the loop."""
