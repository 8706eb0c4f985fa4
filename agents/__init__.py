"""The decision maker: policy networks, rewards, curriculum, gradient estimators and Gymnasium environments.

Nothing here knows of ResNets: a policy network is given its feature extractor, an environment its classifier.
"""
