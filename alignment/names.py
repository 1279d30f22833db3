"""Names of what can be chosen, for help texts that must not load numpy; a test compares them with the registries."""

METRICS = (
    "cosine",
    "dot",
    "euclid",
    "manhattan",
    "chi2",
    "kl-query-item",
    "kl-item-query",
    "js",
    "hellinger",
    "w1",
    "bilinear",
    "mol",
    "mlp",
)
CLOSED_FORMS = ("identity", "procrustes", "ridge", "rcca", "kcca", "asif")
HEADS = ("linear", "residual", "fusemix", "star-glu")
METHODS = (*CLOSED_FORMS, *HEADS)
PROTOCOLS = ("coco-5k", "coco-1k", "flickr30k")
