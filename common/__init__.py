"""What both ends must agree on: study, corpus, audio, features, models, metrics, Flower adapter."""
