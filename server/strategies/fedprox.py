"""FedProx: FedAvg whose clients are pulled towards the weights they were sent.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: "Federated optimization in heterogeneous networks", MLSys 2020,
algorithm 2. The server only names the strength; each client adds the gradient of mu/2 |w - w_round|^2 to
its loss (`client/train.py`).
"""


def client_config(mu: float) -> dict[str, float]:
    """Returns what goes into the clients' messages, under Flower's own name for it."""
    return {"proximal-mu": mu}
