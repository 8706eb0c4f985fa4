"""Studies over the library: those that users run here, measurements done once and the apparatus that checks
robustness in folders of their own."""

# The commands of both folders also go by the names without them: python -m experiments.measurements.block_worth.
__path__ += [f"{__path__[0]}/{folder}" for folder in ("measurements", "robustness")]
