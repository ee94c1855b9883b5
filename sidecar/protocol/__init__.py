"""The Open Inference Protocol: datatypes, wire codec, status table."""
