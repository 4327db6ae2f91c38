import Foundation
import ModditCore
import ModditCoreML

/// `moddit-cli benchmark`: time and memory of every function of a bundle.
enum Benchmark {
    static let model = Option(name: "model", value: "DIR", help: "Bundle to measure.")
    static let command = Command(
        name: "benchmark", summary: "Measure load, calls, memory and placement of every function.", argument: nil,
        options: [
            model,
            Option(
                name: "size", value: "HxW", help: "Pixels; may be there several times.  [default: all of the bundle's]",
                isRepeatable: true),
            Option(
                name: "compute-units", value: "NAME",
                help: "\(ComputeUnits.allCases.map(\.rawValue).joined(separator: ", ")); may be there several times.  "
                    + "[default: the bundle's]",
                isRepeatable: true),
            Option(
                name: "trials", value: "N", help: "Of each function, 2 processes each.  [default: \(Choices.trials)]"),
            Option(
                name: "predictions", value: "N",
                help: "Calls after the first in a process.  [default: \(Choices.predictions)]"),
            Option(
                name: "delay", value: "S", help: "Seconds between processes, for the machine to cool.  [default: 0]"),
            Option(name: "json", value: "FILE", help: "Write the record, with every sample."),
            Option(name: "overwrite", value: nil, help: "Replace the record if it exists."),
        ])

    /// What a user asks for.
    struct Choices: Sendable, Equatable {
        static let trials = 5
        static let predictions = 10
        private static let mostSeconds = 3600.0

        let model: String
        let sizes: [PictureSize]
        let units: [ComputeUnits]
        let trials: Int
        let predictions: Int
        let delay: Double

        init(_ arguments: Arguments) throws(UsageError) {
            model = try arguments.required(Benchmark.model.name)
            var sizes: [PictureSize] = []
            for text in arguments.lists["size"] ?? [] { sizes.append(try Self.size(text)) }
            self.sizes = unique(sizes)
            units = unique(try arguments.choices("compute-units"))
            trials = try arguments.integer("trials", in: 1...100) ?? Self.trials
            predictions = try arguments.integer("predictions", in: 1...BenchmarkRecord.mostSamples) ?? Self.predictions
            delay = try arguments.number("delay") ?? 0
            guard delay <= Self.mostSeconds else {
                throw UsageError(message: "option --delay = '\(delay)', want at most \(Self.mostSeconds) seconds")
            }
        }

        private static func size(_ text: String) throws(UsageError) -> PictureSize {
            let parts = text.split(separator: "x", omittingEmptySubsequences: false)
            let sides = parts.filter { $0.allSatisfy(\.isNumber) }.compactMap { Int($0) }
            guard parts.count == 2, sides.count == 2, sides.allSatisfy({ (1...Bounds.side).contains($0) }) else {
                throw UsageError(message: "option --size = '\(text)', want HEIGHTxWIDTH in pixels such as 512x768")
            }
            return PictureSize(height: sides[0], width: sides[1])
        }

        /// For the record, with the names that the Python runtime's has.
        var json: [String: JSON] {
            [
                "model": .string(model), "sizes": .string(sizes.map(\.text).joined(separator: " ")),
                "compute_units": .string(units.map(\.rawValue).joined(separator: " ")), "trials": .integer(trials),
                "predictions": .integer(predictions), "delay": .number(delay),
            ]
        }
    }

    static func run(_ arguments: Arguments, on host: BenchmarkHost = .this) async throws -> String {
        let choices = try Choices(arguments)
        let overwrites = arguments.flags.contains("overwrite")
        let output = arguments.values["json"].map { OutputFile(path: $0, overwrites: overwrites) }
        try output?.check()
        try host.check()
        let bundle = try ModelBundle(folder: URL(fileURLWithPath: choices.model))
        let graphs = try bundle.graphs()
        let functions = try bundle.manifest.measuredFunctions(
            graphs, sizes: choices.sizes, units: choices.units.isEmpty ? [graphs.computeUnits] : choices.units)
        try check(functions.count, choices)
        try output?.makeFolder()
        let record = BenchmarkRecord(
            created: host.now().formatted(.iso8601), program: "moddit-cli \(command.name)", commit: host.commit(),
            options: choices.json, libraries: host.libraries(), machine: host.machine(),
            subject: BenchmarkRecord.Subject(bundle.manifest), arms: functions.map(\.arm),
            trials: try await BenchmarkTrials(functions, choices, host).run())
        try output?.save(Data(record.text.utf8))
        return BenchmarkTable(record).text
    }

    /// Before anything is measured, so that nothing is lost.
    private static func check(_ functions: Int, _ choices: Choices) throws(ModditError) {
        let processes = functions * choices.trials * FunctionTrial.Kind.allCases.count
        guard processes <= BenchmarkRecord.mostTrials else {
            throw .valueRange(
                "[benchmark] \(functions) functions in \(choices.trials) trials are \(processes) processes, want at most "
                    + "\(BenchmarkRecord.mostTrials); ask for fewer --trials or one --size")
        }
    }
}
