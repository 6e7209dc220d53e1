"""Where an agent runs: one module per isolation mode behind one protocol."""
