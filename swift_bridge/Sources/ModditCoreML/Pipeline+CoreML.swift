import Foundation
import ModditCore

/// How a bundle is run with Core ML.
public struct CoreMLOptions: Sendable, Hashable {
    /// Where Core ML may compute; nil for what the bundle suits best.
    public var computeUnits: ComputeUnits?
    /// Whether each part gives its memory back when the next one begins; loading it again takes time.
    public var reducesMemory: Bool
    /// Whether the hashes of all files are checked first, which reads everything.
    public var verifiesHashes: Bool
    /// Where compiled models are kept; nil for a folder in Application Support.
    public var cacheFolder: URL?

    /// Makes options.
    public init(
        computeUnits: ComputeUnits? = nil, reducesMemory: Bool = false, verifiesHashes: Bool = false,
        cacheFolder: URL? = nil
    ) {
        self.computeUnits = computeUnits
        self.reducesMemory = reducesMemory
        self.verifiesHashes = verifiesHashes
        self.cacheFolder = cacheFolder
    }
}

/// What happens beside the stages of a generation.
public enum CoreMLEvent: Sendable, Hashable {
    /// A function came into memory.
    case loaded(LoadReport)
    /// Something may go wrong.
    case warning(String)
}

extension Pipeline {
    /// Opens a bundle's folder; its models are loaded when they are first used.
    ///
    /// - Parameters:
    ///   - folder: written by `python -m convert --to coreml`.
    ///   - options: how to run it.
    ///   - report: called with warnings, and after every load.
    /// - Throws: `ModditError` if the folder is not a bundle that can be used, or where there is no Core ML.
    public static func open(
        folder: URL, options: CoreMLOptions = CoreMLOptions(),
        report: @escaping @Sendable (CoreMLEvent) -> Void = { _ in }
    ) throws(ModditError) -> Pipeline {
        let (bundle, runner) = try find(folder, options, report)
        let memory = MemoryEstimate(bundle.manifest, reducesMemory: options.reducesMemory)
        for warning in memory.warnings() { report(.warning(warning)) }
        return try Pipeline(bundle: bundle, runner: runner, reducesMemory: options.reducesMemory)
    }

    /// Compiles a bundle's packages and lets the system prepare them, so that the first picture need not wait.
    ///
    /// Nothing stays in memory. Parameters and errors are those of `open`; `ModditError.compute` if Core ML cannot.
    public static func prewarm(
        folder: URL, options: CoreMLOptions = CoreMLOptions(),
        report: @escaping @Sendable (CoreMLEvent) -> Void = { _ in }
    ) async throws {
        let (bundle, runner) = try find(folder, options, report)
        try await runner.prewarm(bundle.graphs())
    }

    private static func find(
        _ folder: URL, _ options: CoreMLOptions, _ report: @escaping @Sendable (CoreMLEvent) -> Void
    ) throws(ModditError) -> (ModelBundle, CoreMLRunner) {
        try CoreMLRunner.checkAvailable()
        let bundle = try ModelBundle(folder: folder)
        if options.verifiesHashes { try bundle.verify(hashes: true) }
        return (bundle, try CoreMLRunner(bundle, options: options) { report(.loaded($0)) })
    }
}
