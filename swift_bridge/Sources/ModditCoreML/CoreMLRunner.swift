import Foundation
import ModditCore

/// Runs a bundle's packages with Core ML; each is loaded when it is first used.
public struct CoreMLRunner: PackageRunning {
    private let models: [String: ManagedModel]  // by path of the package

    /// Names the packages of a bundle; nothing is loaded yet.
    ///
    /// - Parameters:
    ///   - bundle: for Core ML.
    ///   - options: where to compute, and where to keep compiled models.
    ///   - report: called after every load.
    /// - Throws: `ModditError.unsupported` for a bundle of another runtime, or one that needs a newer system.
    public init(
        _ bundle: ModelBundle, options: CoreMLOptions, report: @escaping @Sendable (LoadReport) -> Void = { _ in }
    ) throws(ModditError) {
        let graphs = try bundle.graphs()
        if let system = Graphs.currentSystem { try graphs.check(system: system.name, version: system.version) }
        let cache = try CompiledModelCache(folder: options.cacheFolder)
        let units = options.computeUnits ?? graphs.computeUnits
        var models: [String: ManagedModel] = [:]
        for package in graphs.packages.values.joined() {
            models[package.path] = ManagedModel(
                package, of: bundle, computeUnits: units, cache: cache, report: report)
        }
        self.models = models
    }

    /// Says that there is no Core ML, where that is so.
    ///
    /// - Throws: `ModditError.unsupported` there.
    public static func checkAvailable() throws(ModditError) {
        #if !canImport(CoreML)
        throw .unsupported("[coreml] Core ML is not available on this system; pictures need macOS 15 or iOS 18")
        #endif
    }

    /// Finds a package.
    ///
    /// - Throws: `ModditError.missing` if it is not one of the bundle's.
    public func model(_ package: Package) throws(ModditError) -> ManagedModel {
        guard let model = models[package.path] else {
            throw .missing("[coreml] \(package.path) is not a package of this bundle")
        }
        return model
    }

    /// Runs a function, after loading it if another one is in memory.
    public func run(
        _ package: Package, function: GraphFunction, inputs: [String: Tensor]
    ) async throws -> [String: Tensor] {
        try await model(package).predict(function, inputs)
    }

    /// Gives a package's memory back.
    public func unload(_ package: Package) async {
        await models[package.path]?.unload()
    }

    /// Compiles every package and lets the system prepare every function that a run may use.
    ///
    /// - Parameter roles: whose packages; by default all that a picture needs.
    /// - Throws: `ModditError.compute` if Core ML cannot.
    public func prewarm(_ graphs: Graphs, roles: [PackageRole] = [.textEncoder, .transformer, .vaeDecoder]) async throws
    {
        for package in roles.flatMap({ graphs.packages[$0] ?? [] }) {
            try await model(package).prewarm(package.functions.map(\.name))
        }
    }
}
