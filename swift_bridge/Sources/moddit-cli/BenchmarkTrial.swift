import Foundation
import ModditCore
import ModditCoreML

/// `moddit-cli benchmark-trial`: what `benchmark` runs in a process of its own; not for people.
enum BenchmarkTrial {
    static let command = Command(
        name: "benchmark-trial", summary: "Measure one function in this process; `benchmark` runs it.", argument: nil,
        options: ["model", "package", "function", "compute-units", "kind", "predictions", "cache", "report"].map {
            Option(name: $0, value: "VALUE", help: "As `benchmark` has it.")
        })

    /// Measures a function with Core ML, and writes the report into a file: frameworks print to standard output.
    static func run(_ arguments: Arguments) async throws -> String {
        let (job, report) = try read(arguments)
        try CoreMLRunner.checkAvailable()
        let bundle = try ModelBundle(folder: URL(fileURLWithPath: job.model))
        let runner = try CoreMLRunner(
            bundle, options: CoreMLOptions(computeUnits: job.units, cacheFolder: job.cache))
        let found = try await measure(job, bundle, runner, meter: .this)
        try OutputFile(path: report, overwrites: false).save(Data(found.text.utf8))
        return ""
    }

    /// Measures a function with anything that runs functions.
    static func measure(
        _ job: TrialJob, _ bundle: ModelBundle, _ runner: some FunctionMeasuring, meter: TrialMeter
    ) async throws -> TrialReport {
        let trial = try FunctionTrial(
            job.kind, path: job.package, function: job.function, in: bundle.graphs(), predictions: job.predictions)
        return try await trial.run(runner, bundle.manifest.spec, meter: meter)
    }

    /// The words of a process that does a job.
    static func words(_ job: TrialJob, report: String) -> [String] {
        let values = [
            "model": job.model, "package": job.package, "function": job.function, "compute-units": job.units.rawValue,
            "kind": job.kind.rawValue, "predictions": "\(job.predictions)", "cache": job.cache.path, "report": report,
        ]
        return [command.name] + command.options.map { "--\($0.name)=\(values[$0.name] ?? "")" }
    }

    /// The job in such words, and where its report goes.
    static func read(_ arguments: Arguments) throws(UsageError) -> (TrialJob, report: String) {
        for option in command.options { _ = try arguments.required(option.name) }
        guard let kind: FunctionTrial.Kind = try arguments.choice("kind"),
            let units: ComputeUnits = try arguments.choice("compute-units"),
            let predictions = try arguments.integer("predictions", in: 1...BenchmarkRecord.mostSamples)
        else { throw UsageError(message: "an option is missing") }
        let job = TrialJob(
            kind: kind, model: try arguments.required("model"), package: try arguments.required("package"),
            function: try arguments.required("function"), units: units, predictions: predictions,
            cache: URL(fileURLWithPath: try arguments.required("cache")))
        return (job, try arguments.required("report"))
    }
}

extension TrialMeter {
    /// This process's.
    static let this: TrialMeter = {
        let start = ContinuousClock.now
        return TrialMeter(now: { (ContinuousClock.now - start) / .seconds(1) }, peak: { .this() })
    }()
}
