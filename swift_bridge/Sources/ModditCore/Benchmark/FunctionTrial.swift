import Foundation

/// Loads functions of a bundle's packages and says where they would run, beside running them.
package protocol FunctionMeasuring: PackageRunning {
    /// Loads a function, in place of the one of its package that is in memory.
    ///
    /// - Returns: how it came into memory.
    func load(_ package: Package, function: GraphFunction) async throws -> LoadReport

    /// Takes numbers as if a function of the runtime had given them.
    func hold(_ tensor: Tensor) throws -> any FeatureValue

    /// Asks where a function's operations would run.
    func place(_ package: Package, function: GraphFunction) async throws -> Placement
}

/// A clock, and what a process knows of its memory.
package struct TrialMeter: Sendable {
    /// Seconds since any moment, which never go back.
    let now: @Sendable () -> Double
    /// The largest memory so far.
    let peak: @Sendable () -> ProcessPeak

    /// Chooses what is read.
    package init(now: @escaping @Sendable () -> Double, peak: @escaping @Sendable () -> ProcessPeak) {
        self.now = now
        self.peak = peak
    }

    /// Shortest time that a clock can tell from none.
    private static let resolution = 1e-9

    fileprivate func time<Value>(_ work: () async throws -> Value) async throws -> (Value, seconds: Double) {
        let start = now()
        let value = try await work()
        return (value, max(now() - start, Self.resolution))
    }
}

/// One process's part of a benchmark of a function.
package struct FunctionTrial: Sendable {
    /// What a process measures.
    package enum Kind: String, Sendable, CaseIterable {
        /// The first load, with the compilation; the cache of compiled models must be empty.
        case cold
        /// A load of what the cold one left in the cache, calls, and the placement.
        case cached
    }

    /// Which.
    let kind: Kind
    /// Of the function.
    let package: Package
    /// The function.
    let function: GraphFunction
    /// Calls after the first one.
    let predictions: Int

    /// Finds a function of a bundle.
    ///
    /// - Throws: `ModditError.missing` if there is none.
    package init(
        _ kind: Kind, path: String, function: String, in graphs: Graphs, predictions: Int
    ) throws(ModditError) {
        guard let package = graphs.packages.values.joined().first(where: { $0.path == path }) else {
            throw .missing("[benchmark] \(path) is not a package of this bundle")
        }
        self.kind = kind
        self.package = package
        self.function = try package.function(function)
        self.predictions = predictions
    }

    /// Measures.
    ///
    /// - Throws: what the runtime throws; `ModditError.compute` if a load is not of the kind that was asked for.
    package func run(
        _ runner: some FunctionMeasuring, _ spec: ModelSpec, meter: TrialMeter
    ) async throws -> TrialReport {
        let inputs = try function.benchmarkInputs(spec, runner)
        let (load, seconds) = try await meter.time { try await runner.load(package, function: function) }
        guard load.origin == (kind == .cold ? .compiled : .cache) else {
            let wanted = kind == .cold ? "the cache was not empty" : "the cache had no compiled model that loads"
            throw ModditError.compute("[benchmark] \(package.path), \(function.name): \(wanted); run it again")
        }
        guard kind == .cached else { return TrialReport(stages: [stage(.loadCold, [seconds], meter)]) }
        var stages = [stage(.loadCached, [seconds], meter)]
        let first = try await predict(runner, inputs, meter)
        stages.append(stage(.firstPredict, [first], meter))
        var later: [Double] = []
        for _ in 0..<predictions { later.append(try await predict(runner, inputs, meter)) }
        stages.append(stage(.predict, later, meter))
        return try await withPlacement(runner, stages)
    }

    private func stage(_ name: TrialReport.Stage.Name, _ seconds: [Double], _ meter: TrialMeter) -> TrialReport.Stage {
        TrialReport.Stage(name: name, seconds: seconds, peak: meter.peak())
    }

    private func predict(
        _ runner: some FunctionMeasuring, _ inputs: [String: any FeatureValue], _ meter: TrialMeter
    ) async throws -> Double {
        try await meter.time {
            let outputs = try await runner.call(package, function, inputs)
            for output in outputs.values where !output.isHandedOn { _ = try output.tensor() }
        }.seconds
    }

    /// Asks for the placement after all that is timed; without one the times are good as they are.
    private func withPlacement(
        _ runner: some FunctionMeasuring, _ stages: [TrialReport.Stage]
    ) async throws -> TrialReport {
        do {
            let placement = try await runner.place(package, function: function)
            return TrialReport(stages: stages, operations: placement.devices)
        } catch let error as CancellationError {
            throw error
        } catch {
            let why = (error as? ModditError)?.message ?? error.localizedDescription.printable
            return TrialReport(stages: stages, warnings: ["no placement of \(package.path), \(function.name): \(why)"])
        }
    }
}

extension GraphFunction {
    /// Makes inputs that a step could have: noise, a text that fills all its tokens, the first class.
    fileprivate func benchmarkInputs(
        _ spec: ModelSpec, _ runner: some FunctionMeasuring
    ) throws -> [String: any FeatureValue] {
        var values: [String: any FeatureValue] = [:]
        for (name, feature) in inputs {
            let value = try feature.benchmarkInput(name, spec)
            values[name] = value.isHandedOn ? try runner.hold(value) : value
        }
        return values
    }
}

extension FeatureValue {
    /// Whether it only goes from one function into another, so that the pipeline never copies it.
    fileprivate var isHandedOn: Bool { dtype == .float16 }
}

extension Feature {
    fileprivate func benchmarkInput(_ name: String, _ spec: ModelSpec) throws(ModditError) -> Tensor {
        switch (name, dtype) {
        case (_, .int32): return try Tensor(.int32(Array(repeating: 0, count: count)), shape: shape)
        case (_, .float16):
            return try Tensor(.float16(noise().map(Self.half)), shape: shape)
        case ("timestep", _): return try fill(Float(spec.scheduler.numTrainTimesteps / 2))
        case ("resolution", _): return try fill(Float(spec.defaultSide))
        case ("text_mask", _), ("aspect_ratio", _): return try fill(1)
        default: return try Tensor(noise(), shape: shape)
        }
    }

    private func noise() throws(ModditError) -> [Float] {
        var stream = try NoiseStream(seed: 0)
        return try stream.normal(shape: shape)
    }

    private func fill(_ value: Float) throws(ModditError) -> Tensor {
        try Tensor(Array(repeating: value, count: count), shape: shape)
    }

    /// Half precision of a number of noise, its last bits cut off; what is too small for it is 0.
    private static func half(_ value: Float) -> UInt16 {
        let bits = value.bitPattern
        let exponent = Int(bits >> 23 & 0xFF) - 127 + 15
        guard exponent > 0 else { return 0 }
        return UInt16(bits >> 16 & 0x8000) | UInt16(min(exponent, 30)) << 10 | UInt16(bits >> 13 & 0x3FF)
    }
}
