"""Fused skip connections and the context bridge, for encoders of any number of stages; their settings and variants."""
