"""What runs in a hospital: the ClientApp, local training, evaluation."""
