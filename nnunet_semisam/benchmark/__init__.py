"""Few labels, many arms: what `nnUNetv2_semisam_benchmark` does, from a protocol to tables, a plot and a page."""
