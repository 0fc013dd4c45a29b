"""fewstep's calibration: quantization and policy tuning on rollouts of the deployed engines."""
