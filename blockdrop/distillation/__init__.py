"""Static students of residual teachers: stagewise, Hinton's, and joint residual distillation."""
