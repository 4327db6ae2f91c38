import Foundation
import ModditCore

#if canImport(CoreML)
import CoreML
#endif

/// Runs a bundle's packages with Core ML; each is loaded when it is first used.
package struct CoreMLRunner: PackageRunning {
    private let models: [String: ManagedModel]  // by path of the package

    /// Names the packages of a bundle; nothing is loaded yet.
    ///
    /// - Parameters:
    ///   - bundle: for Core ML.
    ///   - options: where to compute, and where to keep compiled models.
    ///   - report: called after every load.
    /// - Throws: `ModditError.unsupported` for a bundle of another runtime, or one that needs a newer system.
    package init(
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
    package static func checkAvailable() throws(ModditError) {
        #if !canImport(CoreML)
        throw .unsupported("[coreml] Core ML is not available on this system; pictures need macOS 15 or iOS 18")
        #endif
    }

    /// Finds a package.
    ///
    /// - Throws: `ModditError.missing` if it is not one of the bundle's.
    package func model(_ package: Package) throws(ModditError) -> ManagedModel {
        guard let model = models[package.path] else {
            throw .missing("[coreml] \(package.path) is not a package of this bundle")
        }
        return model
    }

    /// Runs a function, after loading it if another one is in memory.
    package func run(
        _ package: Package, function: GraphFunction, inputs: [String: any FeatureValue]
    ) async throws -> [String: any FeatureValue] {
        try await model(package).predict(function, inputs)
    }

    /// Gives a package's memory back.
    package func unload(_ package: Package) async {
        await models[package.path]?.unload()
    }

    /// Version of Core ML itself; nil where there is none.
    package static var version: String? {
        #if canImport(CoreML)
        Bundle(for: MLModel.self).object(forInfoDictionaryKey: "CFBundleVersion") as? String
        #else
        nil
        #endif
    }

    /// Compiles every package and lets the system prepare every function that a run may use.
    ///
    /// - Throws: `ModditError.compute` if Core ML cannot.
    func prewarm(_ graphs: Graphs) async throws {
        for package in PackageRole.allCases.flatMap({ graphs.packages[$0] ?? [] }) {
            try await model(package).prewarm(package.functions.map(\.name))
        }
    }
}

extension CoreMLRunner: FunctionMeasuring {
    /// Loads a function, in place of the one of its package that is in memory.
    package func load(_ package: Package, function: GraphFunction) async throws -> LoadReport {
        try await model(package).load(function.name)
    }

    /// Makes an array of Core ML, as it gives them.
    package func hold(_ tensor: Tensor) throws -> any FeatureValue {
        try CoreMLArray(tensor.multiArray())
    }

    /// Asks Core ML where it would run a function's operations.
    package func place(_ package: Package, function: GraphFunction) async throws -> Placement {
        try await model(package).place(function.name)
    }
}
