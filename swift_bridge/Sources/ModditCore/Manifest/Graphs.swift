// Port of moddit/graphs.py.

/// What a package is for.
public enum PackageRole: String, Sendable, CaseIterable {
    /// Text to states.
    case textEncoder = "text_encoder"
    /// One denoising step; several packages run one after the other.
    case transformer
    /// Latents to picture.
    case vaeDecoder = "vae_decoder"
    /// Picture to moments of latents.
    case vaeEncoder = "vae_encoder"
}

/// Where Core ML may compute.
public enum ComputeUnits: String, Sendable, CaseIterable {
    /// Everywhere.
    case all
    /// On the CPU and the GPU.
    case cpuAndGPU
    /// On the CPU and the Neural Engine.
    case cpuAndNeuralEngine
    /// On the CPU.
    case cpuOnly
}

/// How the packages move tokens.
public enum RoutingKind: String, Sendable, CaseIterable {
    /// By gathering and scattering rows.
    case rows
    /// By products with matrices of ones and zeros.
    case onehot
}

/// An input or output of a function.
public struct Feature: Sendable, Hashable {
    /// Kinds of numbers.
    public enum DType: String, Sendable, CaseIterable {
        /// 4 bytes each.
        case float32
        /// 2 bytes each.
        case float16
        /// 4 bytes each.
        case int32
    }

    /// Sizes, each at least 1.
    public let shape: [Int]
    /// Kind of its numbers.
    public let dtype: DType

    /// Numbers that it has.
    public let count: Int

    /// Most numbers that a feature may have.
    static let mostNumbers = 1 << 30

    /// Reads a feature strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["shape", "dtype"])
        shape = try object["shape"].integers(in: 1...Self.mostNumbers)
        dtype = try choice(object["dtype"])
        var product = 1
        for size in shape {
            product *= size  // both at most 2^30
            guard product <= Self.mostNumbers else {
                throw .valueRange("[graphs] \(field.place): too large, got \(shape), want \(Self.mostNumbers) numbers")
            }
        }
        count = product
    }
}

/// One function of a package.
public struct GraphFunction: Sendable, Hashable {
    /// Its name.
    public let name: String
    /// What it takes, by name.
    public let inputs: [String: Feature]
    /// What it gives, by name.
    public let outputs: [String: Feature]

    /// Reads a function strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["name", "inputs", "outputs"])
        name = try object["name"].name()
        inputs = try Self.readFeatures(object["inputs"])
        outputs = try Self.readFeatures(object["outputs"])
    }

    private static func readFeatures(_ field: JSONField) throws(ModditError) -> [String: Feature] {
        var features: [String: Feature] = [:]
        for (name, item) in try field.object() { features[name] = try Feature(item) }
        return features
    }
}

/// One package of a bundle.
public struct Package: Sendable, Hashable {
    /// Relative to the bundle.
    public let path: String
    /// Its functions.
    public let functions: [GraphFunction]

    /// Reads a package strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["path", "functions"])
        path = try BundlePath.read(object["path"])
        functions = try object["functions"].list(atLeast: 1, GraphFunction.init)
    }

    /// Finds a function.
    ///
    /// - Throws: `ModditError.missing` if there is none of this name.
    public func function(_ name: String) throws(ModditError) -> GraphFunction {
        guard let function = functions.first(where: { $0.name == name }) else {
            throw .missing("[graphs] \(path): has no function '\(name)', got \(functions.map(\.name))")
        }
        return function
    }
}

/// One function of the transformer's packages, which all have it: what it is for.
public struct DenoiserFunction: Sendable, Hashable {
    /// Its name.
    public let function: String
    /// Height of the picture, pixels.
    public let height: Int
    /// Width of the picture, pixels.
    public let width: Int
    /// 2 runs both halves of classifier-free guidance in one call.
    public let batch: Int
    /// Of timesteps; `[0]` for a dense model.
    public let regions: [Int]
    /// Tokens that each layer keeps.
    public let capacities: [Int]

    /// Reads a function's use strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["function", "height", "width", "batch", "regions", "capacities"])
        function = try object["function"].name()
        height = try object.count("height", most: Graphs.longestSide)
        width = try object.count("width", most: Graphs.longestSide)
        batch = try object.count("batch", most: Graphs.largestBatch)
        regions = try object["regions"].integers(in: 0...RoutingPlan.mostTimesteps)
        capacities = try object["capacities"].integers(in: 1...Int.max)
    }
}

/// A picture's size.
public struct PictureSize: Sendable, Hashable {
    /// Pixels.
    public let height: Int
    /// Pixels.
    public let width: Int

    /// Makes a size.
    public init(height: Int, width: Int) {
        self.height = height
        self.width = width
    }

    /// How functions for this size are named.
    var functionName: String { "px\(height)x\(width)" }
}

/// All packages of a bundle.
public struct Graphs: Sendable, Hashable {
    /// Longest side of a picture, pixels.
    public static let longestSide = 1 << 15
    /// Largest batch.
    public static let largestBatch = 64

    /// "iOS" and "macOS" to a version.
    public let minimumOS: [String: String]
    /// What the packages suit best.
    public let computeUnits: ComputeUnits
    /// How they move tokens.
    public let routing: RoutingKind
    /// Role to packages, which run one after the other.
    public let packages: [PackageRole: [Package]]
    /// What the transformer's functions are for.
    public let denoisers: [DenoiserFunction]
    /// The checkpoint's plan, where the bundle's has fewer rows.
    public let trainedPlan: RoutingPlan?

    /// Reads the "graphs" object of a manifest strictly.
    ///
    /// - Throws: `ModditError.format` for unknown or missing fields, `ModditError.valueRange` for huge numbers.
    public init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field, ["minimum_os", "compute_units", "routing", "packages", "denoisers", "trained_plan"])
        let systems = try JSONObject(object["minimum_os"], ["iOS", "macOS"])
        minimumOS = ["iOS": try systems["iOS"].name(), "macOS": try systems["macOS"].name()]
        computeUnits = try choice(object["compute_units"])
        routing = try choice(object["routing"])
        let roles = try JSONObject(object["packages"], PackageRole.allCases.map(\.rawValue))
        var packages: [PackageRole: [Package]] = [:]
        for role in PackageRole.allCases { packages[role] = try roles[role.rawValue].list(atLeast: 1, Package.init) }
        self.packages = packages
        denoisers = try object["denoisers"].list(atLeast: 1, DenoiserFunction.init)
        trainedPlan = try object.optional("trained_plan") { item throws(ModditError) in try RoutingPlan(item) }
    }

    /// Sizes of pictures that the bundle can draw, in the manifest's order.
    public var sizes: [PictureSize] {
        unique(denoisers.map { PictureSize(height: $0.height, width: $0.width) })
    }

    /// Batches that the transformer runs in.
    public var batches: [Int] { unique(denoisers.map(\.batch)) }

    /// Finds the function for a picture's size, a batch and a region of timesteps.
    ///
    /// - Throws: `ModditError.missing` if the bundle has none.
    public func denoiser(size: PictureSize, batch: Int, region: Int) throws(ModditError) -> DenoiserFunction {
        let found = denoisers.first {
            $0.height == size.height && $0.width == size.width && $0.batch == batch && $0.regions.contains(region)
        }
        guard let found else {
            let known = sizes.map { "\($0.height)x\($0.width)" }.joined(separator: ", ")
            throw .missing(
                "[graphs] no function for \(size.height)x\(size.width) pixels, batch \(batch), region \(region); "
                    + "the bundle has sizes \(known) and batches \(batches)")
        }
        return found
    }

    /// Finds the packages of a role.
    ///
    /// - Throws: `ModditError.missing` if there are none.
    public func packages(for role: PackageRole) throws(ModditError) -> [Package] {
        guard let found = packages[role], !found.isEmpty else {
            throw .missing("[graphs] the bundle has no package '\(role.rawValue)'; convert the checkpoint again")
        }
        return found
    }
}

/// Drops repeated items, keeping the order of the first ones.
func unique<Item: Hashable>(_ items: [Item]) -> [Item] {
    var seen: Set<Item> = []
    return items.filter { seen.insert($0).inserted }
}
