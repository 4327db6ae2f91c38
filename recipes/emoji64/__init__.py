"""A text-to-image checkpoint of real pictures: the glyphs of Noto Color Emoji, asked for by their Unicode names.

Run the whole recipe with ``python -m recipes.emoji64 --work DIR`` (a minute or two with ``--smoke``). The same command
goes on where it was stopped: data and training from their last file, other stages, which take minutes, anew.

    pictures     pictures/, 10,083 of 604 glyphs on six backgrounds, with metadata.jsonl, as anybody has them
    text         tokenizer/ and text_encoder/: a small T5 that knows what the glyphs look like, and is frozen
    classifier   classifier.pt, through whose features pictures are compared
    vae          vae/: half the side, four channels
    base         base/: the pipeline before its transformer is trained
    data         data-32/ and data-64/, by `python -m torch_moddit.prepare`
    small        the transformer on pictures of 32 pixels, 64 tokens:  runs/small/, preview/small*, small/
    large        then of 64 pixels, 256 tokens; as long as there is time:  runs/large/, preview/large*, large/
    final        and while the rates fall:  runs/final/, preview/final*, final/
    evaluate     scores.json

To end it early, stop it in "large" and run ``--stage final --stage evaluate``. One thread of a machine whose two cores
others used, too, took 11, 10 and 21 minutes for text, classifier and autoencoder, then saw up to 41 pictures a second
in "small" (in float32, since then in bfloat16) and 12 in "large".
"""
