"""What is made of finished runs: artefacts, recorded and scored like a run."""
