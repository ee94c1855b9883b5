"""Has the traffic changed? Tensors to columns, columns to counts, counts to scores and states."""
