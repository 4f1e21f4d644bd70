"""Internal but for [`ValueModel`]: the critic, its adapter and its optimizer."""
