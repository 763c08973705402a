"""What is measured: anomaly maps, image scores and metrics; pure functions that know no network and no files."""
