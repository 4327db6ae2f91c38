// Made of moddit/bounds.py and docs/format.md by scripts/swift_bounds.py; `make golden` makes it anew.

/// How large what is read may be, each at most this: the same bounds as in Python.
///
/// They are checked before anything is allocated for a value, so that a damaged or hostile file costs no memory.
package enum Bounds {
    /// Bytes of a configuration, an index or a manifest.
    package static let jsonBytes = 8_388_608
    /// Bytes of `tokenizer.json`, and of each file beside it.
    package static let tokenizerBytes = 33_554_432
    /// Bytes of a file with a caption or a step in each line.
    package static let logBytes = 1_073_741_824
    /// Lists and objects within each other.
    package static let jsonDepth = 64
    /// Files of a component.
    package static let files = 10_000
    /// Bytes of a file.
    package static let fileBytes = 70_368_744_177_664
    /// Numbers of a component.
    package static let parameters = 70_368_744_177_664
    /// Tensors of one item of `quantization`.
    package static let tensors = 100_000
    /// Items of `quantization` of a component.
    package static let quantizations = 64
    /// Characters of a name.
    package static let name = 256
    /// Characters of a path.
    package static let path = 1_024
    /// Characters of a prompt that is encoded.
    package static let prompt = 20_000
    /// Characters of a prompt in a picture's settings, or of `source`.
    package static let text = 100_000
    /// Steps of a normalizer or of a pre-tokenizer.
    package static let steps = 8
    /// Bytes that a map of characters puts for one.
    package static let replacement = 96
    /// Layers of a transformer or text encoder, or of a block of the VAE.
    package static let layers = 1_000
    /// Heads of an attention.
    package static let heads = 1_024
    /// Width of a head.
    package static let headWidth = 4_096
    /// Width of a hidden state.
    package static let width = 262_144
    /// Channels of a latent.
    package static let channels = 4_096
    /// Levels of a VAE.
    package static let levels = 8
    /// Side of a patch, latent pixels.
    package static let patch = 64
    /// Tokens of a vocabulary.
    package static let vocabulary = 1_048_576
    /// Classes that a model draws by number.
    package static let classes = 100_000
    /// Tokens of a text.
    package static let textTokens = 4_096
    /// Buckets of distances in a text.
    package static let buckets = 4_096
    /// Longest of these distances.
    package static let distance = 1_048_576
    /// Timesteps of training; a run has no more steps.
    package static let timesteps = 100_000
    /// Regions of timesteps.
    package static let regions = 100
    /// Guidance scale.
    package static let guidance = 1_000
    /// Pictures of a run.
    package static let pictures = 10_000
    /// Side of a picture or of a tile, pixels.
    package static let side = 16_384
    /// Pixels of a picture.
    package static let pixels = 67_108_864
    /// Tokens of a picture.
    package static let tokens = 65_536
    /// Tokens of a picture, for each of the square picture that the model was trained on.
    package static let trainedTokens = 16
    /// Batch of a package's function.
    package static let batch = 64
    /// Packages of a role.
    package static let packages = 100
    /// Functions of a package.
    package static let functions = 1_000
    /// Inputs or outputs of a function.
    package static let features = 64
    /// Dimensions of a feature.
    package static let dimensions = 8
    /// Numbers of a feature.
    package static let featureSize = 1_073_741_824
}
