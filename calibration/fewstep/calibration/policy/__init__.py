"""The policy network, tuned by reinforcement learning on the engines that are deployed.

AdaNAT (Ni et al., ECCV 2024): generation is a Markov decision process. State: the transformer's
features and the step; action: mask ratio, temperatures and guidance of the step; reward, after the
last step: what a discriminator, trained at the same time, thinks of the image.

    data.py         real images, checked against the bundle
    features.py     frozen networks that turn images into features
    networks.py     actor and critic; reading the actor of a bundle
    discriminator.py, rewards.py    what an image is worth
    environment.py  generations by the bundle's own engines, with an exploring policy
    ppo.py          one update of actor and critic
    training.py     the loop; state.py its resumable state; workers.py several processes
    plots.py        reward, distance and the learned schedule
    store.py        the tuned policy into the bundle
"""
