"""The policy network, tuned by reinforcement learning on the engines that are deployed.

AdaNAT (Ni et al., ECCV 2024): generation is a Markov decision process. State: the transformer's
features and the step; action: what the family lets a policy decide of the step, such as guidance
and temperatures; reward, after the last step: what a discriminator, trained at the same time,
thinks of the image. What else differs between families is in ``fewstep.runtime.policies``.

    options.py, tune.py             what is asked for; from bundle and images to a tuned policy
    data.py                         real images, checked against the bundle
    features.py                     frozen networks that turn images into features
    networks.py, imitation.py       actor and critic; where a policy starts
    discriminator.py, rewards.py    what an image is worth
    environment.py                  generations by the bundle's own engines, exploring
    ppo.py                          one update of actor and critic
    training.py, state.py           the loop, and its resumable state; workers.py several processes
    distances.py                    how far generated images are from real ones, by features
    plots.py, store.py              pictures of it; the tuned policy into the bundle
"""
