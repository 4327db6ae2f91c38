import Foundation
import ModditCore

/// One package of a bundle, with at most one of its functions in memory.
///
/// The package is hashed and compiled on first use, and the compiled model kept in a cache. Two calls at the same time for different
/// functions both succeed; for a moment both functions are in memory then.
package actor ManagedModel {
    private let package: Package
    private let bundle: ModelBundle
    private let hash: String
    private let computeUnits: ComputeUnits
    private let cache: CompiledModelCache
    private let report: @Sendable (LoadReport) -> Void
    private var resident: Resident?
    private var unloads = 0  // so that one during a load counts

    private struct Resident {
        let function: String
        let model: LoadedModel
        let report: LoadReport
    }

    /// Names a package; nothing is loaded yet.
    ///
    /// - Parameters:
    ///   - package: one of the bundle's.
    ///   - bundle: where it lies.
    ///   - computeUnits: where Core ML may compute.
    ///   - cache: of compiled models.
    ///   - report: called after every load.
    init(
        _ package: Package, of bundle: ModelBundle, computeUnits: ComputeUnits, cache: CompiledModelCache,
        report: @escaping @Sendable (LoadReport) -> Void
    ) {
        self.package = package
        self.bundle = bundle
        hash = bundle.manifest.hash(of: package)
        self.computeUnits = computeUnits
        self.cache = cache
        self.report = report
    }

    /// Loads a function, in place of the one that is in memory.
    ///
    /// - Returns: how it came into memory.
    /// - Throws: `ModditError.compute` if Core ML cannot compile or load it, `ModditError.format` if the package has changed
    ///   since the manifest was written.
    @discardableResult
    package func load(_ function: String) async throws -> LoadReport {
        try await resident(function).report
    }

    /// Lets the system prepare functions for the device, one after the other, and leaves none in memory.
    ///
    /// - Throws: as `load`.
    func prewarm(_ functions: [String]) async throws {
        for function in functions {
            try Task.checkCancellation()
            try await load(function)
            unload()
        }
    }

    /// Gives the memory back.
    func unload() {
        unloads += 1
        resident = nil
    }

    /// Runs a function.
    ///
    /// - Throws: `ModditError.compute` if Core ML cannot.
    func predict(
        _ function: GraphFunction, _ inputs: [String: any FeatureValue]
    ) async throws -> [String: any FeatureValue] {
        let model = try await resident(function.name).model
        do {
            return try await model.predict(inputs, outputs: Array(function.outputs.keys))
        } catch {
            throw failure("run function \(function.name) of", error)
        }
    }

    /// Asks Core ML where it would run a function's operations; the package is compiled, and nothing loaded.
    ///
    /// - Throws: `ModditError.compute` if Core ML cannot tell.
    package func place(_ function: String) async throws -> Placement {
        let compiled = try await compile()
        do {
            return try await place(compiled.url, function)
        } catch let error as ModditError where compiled.origin == .cache {
            // as for a load: an older system may have compiled it
            guard case .compute = error, !Task.isCancelled else { throw error }
            try cache.remove(hash)
            return try await place(compile().url, function)
        }
    }

    private func place(_ url: URL, _ function: String) async throws -> Placement {
        do {
            return try await LoadedModel.place(
                url, package: package.path, function: function, computeUnits: computeUnits)
        } catch {
            throw failure("place function \(function) of", error)
        }
    }

    private func resident(_ function: String) async throws -> Resident {
        if let resident, resident.function == function { return resident }
        resident = nil  // before the other one is loaded: memory for two is not needed
        let before = unloads
        var compiled = try await compile()
        var start = ContinuousClock.now
        let model: LoadedModel
        do {
            model = try await open(compiled.url, function)
        } catch let error as ModditError where compiled.origin == .cache {
            // an older system may have compiled it, or it is damaged
            guard case .compute = error, !Task.isCancelled else { throw error }
            try cache.remove(hash)
            compiled = try await compile()
            start = ContinuousClock.now
            model = try await open(compiled.url, function)
        }
        let load = LoadReport(
            package: package.path, function: function, origin: compiled.origin, compileSeconds: compiled.seconds,
            loadSeconds: Self.seconds(since: start))
        let loaded = Resident(function: function, model: model, report: load)
        if before == unloads { resident = loaded }
        report(load)
        return loaded
    }

    private func open(_ url: URL, _ function: String) async throws -> LoadedModel {
        do {
            return try await LoadedModel.load(url, function: function, computeUnits: computeUnits)
        } catch {
            throw failure("load function \(function) of", error)
        }
    }

    /// Finds the compiled model, or compiles the package if its files are those that the manifest lists.
    private func compile() async throws -> CompiledModelCache.Model {
        do {
            return try await cache.model(of: package, in: bundle, compile: LoadedModel.compile)
        } catch {
            throw failure("compile", error)
        }
    }

    private static func seconds(since start: ContinuousClock.Instant) -> Double {
        (ContinuousClock.now - start) / .seconds(1)
    }

    /// Turns Core ML's errors into ours.
    private func failure(_ action: String, _ error: any Error) -> any Error {
        if Task.isCancelled { return CancellationError() }
        if error is ModditError || error is CancellationError { return error }
        return ModditError.compute(
            "[coreml] cannot \(action) \(package.path): \(error.localizedDescription); "
                + "try other compute units, or reduce memory")
    }
}
