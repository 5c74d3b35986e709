"""The frame around every stage: configuration, artifacts, fingerprints, events, errors. Knows no stage."""
