import Foundation
import ModditCore

/// The trials of a benchmark, in the order in which they run.
struct BenchmarkTrials {
    private let functions: [MeasuredFunction]
    private let choices: Benchmark.Choices
    private let host: BenchmarkHost

    init(_ functions: [MeasuredFunction], _ choices: Benchmark.Choices, _ host: BenchmarkHost) {
        self.functions = functions
        self.choices = choices
        self.host = host
    }

    /// Takes the functions forwards and backwards in turn, so that what drifts hits all of them alike.
    var order: [Int] {
        (0..<choices.trials).flatMap { round in
            round % 2 == 0 ? Array(functions.indices) : functions.indices.reversed()
        }
    }

    /// Runs all trials: of each function in turn a cold process and one that finds what that has compiled.
    ///
    /// - Throws: what the first one that fails throws.
    func run() async throws -> [BenchmarkRecord.Trial] {
        var trials: [BenchmarkRecord.Trial] = []
        for arm in order {
            let cache = FileManager.default.temporaryDirectory
                .appendingPathComponent("moddit-benchmark-\(UUID().uuidString)")
            defer { try? FileManager.default.removeItem(at: cache) }
            for kind in FunctionTrial.Kind.allCases {
                if !trials.isEmpty { try await host.pause(choices.delay) }
                trials.append(try await trial(arm, kind, cache, number: trials.count + 1))
            }
        }
        return trials
    }

    private func trial(
        _ number: Int, _ kind: FunctionTrial.Kind, _ cache: URL, number position: Int
    ) async throws -> BenchmarkRecord.Trial {
        let item = functions[number]
        let most = functions.count * choices.trials * FunctionTrial.Kind.allCases.count
        host.note("\(position)/\(most) \(item.arm.name), \(item.arm.units.rawValue), \(kind.rawValue)")
        let before = host.conditions()
        let report = try await host.measure(
            TrialJob(
                kind: kind, model: choices.model, package: item.package.path, function: item.function.name,
                units: item.arm.units, predictions: choices.predictions, cache: cache))
        for warning in report.warnings { host.note("warning: \(warning)") }
        return BenchmarkRecord.Trial(arm: number, before: before, after: host.conditions(), report: report)
    }
}

/// What one process measures.
struct TrialJob: Sendable, Equatable {
    let kind: FunctionTrial.Kind
    /// Folder of the bundle.
    let model: String
    /// Path in the bundle.
    let package: String
    let function: String
    let units: ComputeUnits
    let predictions: Int
    /// Folder of compiled models.
    let cache: URL
}
