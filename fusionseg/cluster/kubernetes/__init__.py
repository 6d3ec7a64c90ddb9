"""Kubernetes: a run as a PyTorchJob of Kubeflow's training operator. Nothing here talks to a cluster."""
